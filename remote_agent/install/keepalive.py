"""Restarts the agent after a crash or reboot: a systemd user unit, cron, or nothing.

Owns the unit file and the cron lines of one agent; does not know what an agent does. All calls of other programs have
deadlines, so that a hung systemctl does not hang a deployment.
"""

from __future__ import annotations

import os
import pwd

from remote_agent.protocol.digests import sha256_hex
from remote_agent.protocol.hints import Optional

CALL_TIMEOUT_S = 8.0
SYSTEMD_RUNS = "/run/systemd/system"  # exists if systemd is this machine's init: sd_booted(3)


class KeepAlive:
    """Keeps one agent running: systemd runs the agent itself, cron runs
    `<agent_dir>/current/remote_agent/install/__main__.py ensure`."""

    def __init__(self, agent_dir: str, python: str, label: str) -> None:
        self.agent_dir = agent_dir
        self.python = python
        self.label = label  # "<fleet>/<host>", for people who read their crontab
        self.tag = sha256_hex(agent_dir.encode())[:12]
        self.unit = f"procguard-{self.tag}.service"

    def choose(self, wanted: str) -> "tuple[str, str]":
        """Returns (kind, reason): "systemd", "cron" or "none". `wanted`: procguard_service, "auto" or one of these."""
        if wanted == "none":
            return "none", "procguard_service: none"
        reason = "not asked for" if wanted == "cron" else _systemd_obstacle()
        if wanted in ("auto", "systemd") and not reason:
            return "systemd", ""
        if not _program("crontab"):
            return "none", f"systemd: {reason}; no crontab here" if wanted != "cron" else "no crontab here"
        return "cron", f"systemd: {reason}"

    def install(self, kind: str) -> bool:
        """Make `kind` the only keep-alive of this agent. True when something changed."""
        changed = False
        if kind != "systemd":
            changed = self._remove_unit() or changed
        if kind != "cron":
            changed = self._write_cron([]) or changed
        if kind == "systemd":
            changed = self._write_unit() or changed
        elif kind == "cron":
            changed = self._write_cron(self._cron_lines()) or changed
        return changed

    def remove(self) -> bool:
        return self.install("none")

    def installed(self) -> str:
        if os.path.exists(self._unit_path()):
            return "systemd"
        return "cron" if any(self._is_mine(line) for line in (_read_crontab() or [])) else "none"

    # ---------------------------------------------------------------------------------------------- systemd

    def systemctl(self, verb: str) -> bool:
        return _call(["systemctl", "--user", verb, self.unit]) is not None

    def _unit_path(self) -> str:
        base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
        return os.path.join(base, "systemd", "user", self.unit)

    def _unit_text(self) -> str:
        # KillMode=process, Delegate, OOMPolicy: stopping or losing the agent must not affect a runner or its process.
        argv = [self.python, "-s", "-E", "-S", "-m", "remote_agent", "run", "--dir", self.agent_dir]
        return "\n".join(
            (
                "[Unit]",
                f"Description=ProcGuard agent {self.label}",
                "",
                "[Service]",
                f"ExecStart={' '.join(systemd_quote(word) for word in argv)}",
                f"WorkingDirectory={self.agent_dir.replace('%', '%%')}/current",
                "Restart=always",
                "RestartSec=1",
                "KillMode=process",
                "Delegate=yes",
                "OOMPolicy=continue",
                "TasksMax=infinity",
                "",
                "[Install]",
                "WantedBy=default.target",
                "",
            )
        )

    def _write_unit(self) -> bool:
        path, text = self._unit_path(), self._unit_text()
        try:
            with open(path, encoding="utf-8") as old:
                if old.read() == text:
                    return False
        except OSError:
            pass
        os.makedirs(os.path.dirname(path), exist_ok=True)
        scratch = f"{path}.{os.getpid()}.tmp"
        with open(scratch, "w", encoding="utf-8") as out:
            out.write(text)
        os.replace(scratch, path)
        _call(["systemctl", "--user", "daemon-reload"])
        self.systemctl("enable")
        return True

    def _remove_unit(self) -> bool:
        path = self._unit_path()
        if not os.path.exists(path):
            return False
        self.systemctl("disable")
        os.unlink(path)
        _call(["systemctl", "--user", "daemon-reload"])
        return True

    # ------------------------------------------------------------------------------------------------- cron

    def _cron_lines(self) -> "list[str]":
        installer = os.path.join(self.agent_dir, "current", "remote_agent", "install", "__main__.py")
        import shlex

        words = [self.python, "-I", "-S", installer, "ensure", "--dir", self.agent_dir]
        # In a crontab an unescaped % is a line break, even within quotes.
        command = " ".join(shlex.quote(word) for word in words).replace("%", r"\%")
        end = f">/dev/null 2>&1 # procguard:{self.tag} {self.label}"
        return [f"@reboot {command} {end}", f"* * * * * {command} {end}"]

    def _is_mine(self, line: str) -> bool:
        return f"# procguard:{self.tag} " in line

    def _write_cron(self, wanted: "list[str]") -> bool:
        lines = _read_crontab()
        if lines is None:
            return False
        if [line for line in lines if self._is_mine(line)] == wanted:
            return False
        kept = [line for line in lines if not self._is_mine(line)]
        text = "".join(line + "\n" for line in kept + wanted)
        if text:
            return _call(["crontab", "-"], text) is not None
        return _call(["crontab", "-r"]) is not None


def _read_crontab() -> "Optional[list[str]]":
    """The user's lines; [] if there are none; None if there is no crontab program."""
    if not _program("crontab"):
        return None
    return (_call(["crontab", "-l"]) or "").splitlines()


def _program(name: str) -> bool:
    """Whether a program is on PATH. `shutil.which` would import bz2 and lzma, which a session does not need."""
    return any(os.access(os.path.join(folder, name), os.X_OK) for folder in os.get_exec_path())


def _systemd_obstacle() -> str:
    """Why a user unit would not keep the agent alive; "" if it would."""
    if not os.path.isdir(SYSTEMD_RUNS) or not _program("systemctl"):
        return "not here"
    if _call(["systemctl", "--user", "show-environment"]) is None:
        return "no user manager answers"
    user = pwd.getpwuid(os.getuid()).pw_name
    if not _lingers(user):
        _call(["loginctl", "enable-linger", user])
        if not _lingers(user):
            import shlex

            return f"linger is off (an administrator can run: loginctl enable-linger {shlex.quote(user)})"
    return ""


def _lingers(user: str) -> bool:
    return "Linger=yes" in (_call(["loginctl", "show-user", user, "--property=Linger"]) or "")


def systemd_quote(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def _call(argv: "list[str]", text: str = "") -> Optional[str]:
    """The program's output; None if it failed or took longer than CALL_TIMEOUT_S."""
    import subprocess

    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=CALL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
