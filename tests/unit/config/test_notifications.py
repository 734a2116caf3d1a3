"""The configuration of alerts: secrets, mistakes and the documented examples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from procguard.config import schema
from procguard.config.notifications import ALERT_CLASSES, AlertTarget
from procguard.errors import ConfigError
from procguard.notify.notifier import Notifier
from tests.unit.notify.alert_examples import HIDDEN


def mistakes(tmp_path: Path, text: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        schema.load(str(path))
    return str(caught.value)


def test_secrets_come_from_environment_and_files_and_are_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hook").write_text(HIDDEN + "\n")
    monkeypatch.setenv("DING_SECRET", "SECabc")
    path = tmp_path / "c.yaml"
    path.write_text(
        f"notifications:\n  - {{name: a, type: slack, url: 'file:{tmp_path}/hook'}}\n"
        f"  - {{name: b, type: dingtalk, url: '{HIDDEN}', secret: env:DING_SECRET}}\n"
    )
    loaded = schema.load(str(path))
    first, second = loaded.notifications
    assert first.url.get_secret_value() == HIDDEN and second.secret.get_secret_value() == "SECabc"
    one = Notifier(loaded.notifications, lambda: "f", lambda: "")
    shown = repr(loaded) + str(loaded.model_dump()) + str(one.views()) + loaded.model_dump_json()
    assert "TheSecretPath" not in shown and "SECabc" not in shown
    assert one.views()[0]["address"] == "https://hooks.example.org/…"


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("{name: a, type: slack, url: 'ftp://TheSecretPath'}", "a url that begins with https:// or http://"),
        ("{name: a, type: slack, url: 'https://x:TheSecretPath/'}", "a url that begins with https:// or http://"),
        ("{name: a, type: slack}", "a url that begins with https:// or http://"),
        ("{name: a, type: slack, url: [TheSecretPath]}", "notifications.0.url: expected"),
        ("{name: a, type: slack, url: 'env:NOT_SET_ANYWHERE'}", "NOT_SET_ANYWHERE to be set"),
        ("{name: a, type: slack, url: 'file:/nowhere/x'}", "No such file"),
        ("{name: a, type: pigeon, url: 'https://x/TheSecretPath'}", "one of webhook, slack, feishu"),
        ("{name: 'a b', type: slack, url: 'https://x/TheSecretPath'}", "letters, digits"),
        ("{name: a, type: slack, url: 'https://x/', events: [Failed!]}", "or a kind of event"),
        ("{name: a, type: slack, url: 'https://x/', secrte: TheSecretPath}", "did you mean notifications.0.secret?"),
        ("{name: a, type: email, smtp_host: m, sender: me, to: [you]}", "addresses such as"),
        ("{name: a, type: email, smtp_password: TheSecretPath}", "smtp_host, sender and to"),
        (
            "{name: a, type: slack, url: 'https://x/'}\n  - {name: a, type: slack, url: 'https://x/'}",
            "a is used twice",
        ),
    ],
)
def test_mistakes_are_reported_without_the_secret(tmp_path: Path, entry: str, complaint: str) -> None:
    sent_at = mistakes(tmp_path, f"notifications:\n  - {entry}\n")
    assert complaint in sent_at and "TheSecretPath" not in sent_at, sent_at


def test_every_key_of_a_target_is_documented() -> None:
    shown = (Path(__file__).parents[3] / "docs" / "notifications.md").read_text(encoding="utf-8")
    for name, info in AlertTarget.model_fields.items():
        assert f"| `{name}` |" in shown and (info.description or "") in shown, name
    for alert in ALERT_CLASSES:
        assert f"`{alert}`" in shown


def test_the_documented_examples_are_read_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    shown = (Path(__file__).parents[3] / "docs" / "notifications.md").read_text(encoding="utf-8")
    for name in re.findall(r"env:([A-Z_]+)", shown):
        monkeypatch.setenv(name, "https://hooks.example.org/x")
    blocks = re.findall(r"```yaml\n(.*?)```", shown, re.DOTALL)
    kinds = set()
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, encoding="utf-8")
        kinds |= {one.type for one in schema.load(str(path)).notifications}
    assert kinds == {"webhook", "slack", "feishu", "dingtalk", "wecom", "email"}
