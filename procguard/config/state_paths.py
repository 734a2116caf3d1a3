"""Default paths of the state for a manager without a configuration: one per user, independent of the working
directory.

In a configuration, `state.state_file` is relative to the working directory. Knows paths only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

FILE = "procguard_state.yaml"
IN_WORKING_DIRECTORY = os.path.join("data", FILE)  # where earlier releases stored it


def well_known() -> str:
    """~/.local/share/procguard/procguard_state.yaml, or below XDG_DATA_HOME."""
    data = os.environ.get("XDG_DATA_HOME") or ""
    if not os.path.isabs(data):
        data = os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(data, "procguard", FILE)


def without_configuration(given: Sequence[str] = ()) -> list[str]:
    """`--set` values for a start without a configuration file; `given` are the user's own, which take precedence.

    A state that an earlier release created in the working directory stays in use if there is none at the default path.
    """
    place = well_known()
    if not exists(place) and exists(IN_WORKING_DIRECTORY):
        return list(given)
    values = {"state.state_file": place, "logging.file": os.path.join(os.path.dirname(place), "procguard.log")}
    return [f"{key}={json.dumps(path)}" for key, path in values.items()] + list(given)  # quoted: parsed as YAML


def exists(state_file: str) -> bool:
    """Whether there is a state: the snapshot, the database, or a file that belongs to either."""
    directory, name = os.path.split(os.path.abspath(state_file))
    names = (name, os.path.splitext(name)[0] + ".db")
    try:
        return any(entry.startswith(names) for entry in os.listdir(directory))
    except OSError:
        return False


def note_of_another(state_file: str) -> str:
    """A note if this state is about to be created although the user has one at the default path; else ""."""
    place = well_known()
    if exists(state_file) or not exists(place) or os.path.realpath(place) == os.path.realpath(state_file):
        return ""
    return (
        f"note: {state_file} is new and empty: another fleet than that of {place}. To continue with that one, start "
        f"without --config, or with --set state.state_file={place}"
    )
