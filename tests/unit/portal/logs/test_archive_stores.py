"""The archive in a bucket with the shared database, and in a folder with SQLite; misbehaviour of buckets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procguard.errors import ConfigError, ProcGuardError
from procguard.fleet.store.interface import Fenced
from procguard.fleet.store.postgres_link import DatabasePlace
from procguard.fleet.store.postgresql import PostgresqlStore
from procguard.portal.logs.archive import s3
from procguard.portal.logs.archive.index import ArchiveIndex, PostgresTables
from procguard.portal.logs.archive.object_store import ArchiveFailed, FolderStore, ObjectMissing, new_name
from procguard.portal.logs.archive.s3 import BucketOptions, BucketStore, taken_secrets
from remote_agent.protocol.messages import directory_name
from tests import postgres_server
from tests.archive_rig import FLEET, ArchiveRig, here, numbered
from tests.unit.portal.logs.test_log_archive import filled
from tests.unit.portal.logs.test_log_quota import can_punch

KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI-secret"}
REGION = BucketOptions(region="eu-west-1")
MIB = 2**20


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto")  # 0.2 s, not of each process that collects
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in (*s3.SECRET_VARIABLES, "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    with moto.mock_aws():
        made = boto3.client("s3", region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="y")
        made.create_bucket(Bucket="pg-archive", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        yield made


def test_in_a_bucket_it_is_the_same(client: Any, tmp_path: Path) -> None:
    if not can_punch(tmp_path):
        pytest.skip("this file system has no holes")
    rig = ArchiveRig(tmp_path, BucketStore("pg-archive", "a/b", FLEET, REGION, KEYS), keep_per_worker=2 * MIB)
    downloads = filled(rig)
    rig.archive_all()
    for first in (9_000, 29_000, 49_000):  # more than may stay on the disk
        rig.write("w1", 2, numbered(first, first + 20_000))
        downloads["w1"] += numbered(first, first + 20_000)
        rig.archive_all()
    rig.write("w2", 1, b"\n")
    rig.archive_all()
    downloads["w2"] += b"\n"
    keys = [one["Key"] for one in client.list_objects_v2(Bucket="pg-archive")["Contents"]]
    assert len(keys) >= 3 and all(key.startswith(f"a/b/{FLEET}/") for key in keys)
    rig.again(lost_disk=True)
    assert {one: rig.download(one) for one in rig.workers} == downloads
    rig.again(lost_disk=True, lost_index=True)
    assert {one: rig.download(one) for one in rig.workers} == downloads
    for one in rig.workers:
        rig.store.retire(one)
        rig.store.retire(one)  # its archive goes with the next of its name
    rig.archive_all()
    assert client.list_objects_v2(Bucket="pg-archive")["KeyCount"] == 0


def test_two_managers_never_write_over_each_other(client: Any) -> None:
    place, name = BucketStore("pg-archive", "", FLEET, REGION, KEYS), new_name(1, 1_000.0)
    place.put(name, b"first")
    place.put(name, b"other")  # an earlier try has arrived: refused by the server, and that is well
    assert place.get(name, 0, 10) == b"first" and place.get(name, 3, 100) == b"st" and place.get(name, 50, 5) == b""
    place.delete(name)
    place.delete(name)
    with pytest.raises(ObjectMissing):
        place.get(name, 0, 1)
    assert list(place.names()) == []


def test_a_server_without_conditions_gets_none(client: Any) -> None:
    place, asked = BucketStore("pg-archive", "", FLEET, REGION, KEYS), []

    def refuse(params: dict[str, Any], **_: Any) -> None:
        asked.append("IfNoneMatch" in params)
        if "IfNoneMatch" in params:
            from botocore.exceptions import ClientError

            answer = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
            raise ClientError(answer, "PutObject")

    place._client.meta.events.register("before-parameter-build.s3.PutObject", refuse)
    names = [new_name(1, 1_000.0 + number) for number in range(2)]
    for name in names:
        place.put(name, b"data")
    assert asked == [True, False, False] and list(place.names()) == names


@pytest.mark.parametrize("says_which", [True, False])
def test_a_part_is_known_by_its_content_range(client: Any, says_which: bool) -> None:
    """rclone answers a part with 200; a server that sends the whole object instead is refused."""
    place, name = BucketStore("pg-archive", "", FLEET, REGION, KEYS), new_name(1, 1_000.0)
    place.put(name, b"0123456789")

    def with_200(parsed: dict[str, Any], **_: Any) -> None:
        parsed["ResponseMetadata"]["HTTPStatusCode"] = 200
        if not says_which:
            parsed.pop("ContentRange")

    place._client.meta.events.register("after-call.s3.GetObject", with_200)
    if says_which:
        assert place.get(name, 3, 2) == b"34"
    else:
        with pytest.raises(ArchiveFailed, match="ignores the Range"):
            place.get(name, 3, 2)


@pytest.mark.parametrize("broken", ["NoSuchBucket", "AccessDenied", "unreachable"])
def test_no_message_shows_a_secret(client: Any, broken: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    options = BucketOptions("http://127.0.0.1:1", "eu-west-1") if broken == "unreachable" else REGION
    place = BucketStore("nowhere" if broken == "NoSuchBucket" else "pg-archive", "", FLEET, options, KEYS)
    if broken == "AccessDenied":

        def refuse(**_: Any) -> None:
            from botocore.exceptions import ClientError

            error = {"Code": "AccessDenied", "Message": f"{KEYS}"}
            raise ClientError({"Error": error, "ResponseMetadata": {"HTTPStatusCode": 403}}, "PutObject")

        place._client.meta.events.register("before-parameter-build.s3.PutObject", refuse)
    with pytest.raises(ArchiveFailed) as raised:
        place.put(new_name(1, 1.0), b"data")
    text = f"{raised.value} {raised.value!r} {raised.value.__cause__} {place!r} {caplog.text}"
    assert not any(value in text for value in KEYS.values())
    assert raised.value.message.startswith("logs.archive: s3://") and raised.value.next_step


def test_secrets_leave_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    assert taken_secrets() == KEYS and not any(name in os.environ for name in KEYS)


def test_missing_credentials_and_a_missing_profile_are_said_at_the_start(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="profile does not exist"):
        BucketStore("pg-archive", "", FLEET, BucketOptions(profile="nobody"))
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = fromfile\naws_secret_access_key = s\n")
    with monkeypatch.context() as patch:
        for name in s3.SECRET_VARIABLES:
            patch.delenv(name, raising=False)
        with pytest.raises(ConfigError, match="no credentials were found"):
            BucketStore("pg-archive", "", FLEET, REGION)
        place = BucketStore(
            "pg-archive", "", FLEET, BucketOptions(region="eu-west-1", credentials_file=str(file)), KEYS
        )
    assert place._client._request_signer._credentials.access_key == "fromfile"


def test_a_folder_that_is_not_mounted_is_not_written_beside(tmp_path: Path) -> None:
    rig = ArchiveRig(tmp_path)
    rig.write("w1", 1, b"one\n")
    rig.archive_all()
    (tmp_path / "shared").rename(tmp_path / "unmounted")
    (tmp_path / "shared").mkdir()
    rig.again()
    rig.write("w1", 1, b"two\n")
    with pytest.raises(ArchiveFailed, match="earlier archived logs are missing"):
        rig.archive.step()
    (tmp_path / "shared").rmdir()
    with pytest.raises(ArchiveFailed, match="No such file"):
        rig.archive.step()
    (tmp_path / "unmounted").rename(tmp_path / "shared")
    rig.archive_all()
    rig.again(lost_disk=True)
    assert rig.download("w1") == b"one\ntwo\n"


# ------------------------------------------------------------------------------------------- the shared database


def test_with_the_shared_database_it_is_the_same(tmp_path: Path) -> None:
    with postgres_server.cluster() as server:
        place = DatabasePlace(server.url(server.database()), str(server.password))
        store = PostgresqlStore(place)
        store.load()
        rig = ArchiveRig(tmp_path, database=place)
        downloads = filled(rig)
        rig.archive_all()
        rig.write("w1", 2, numbered(9_000, 9_100))
        rig.archive_all()
        downloads["w1"] = rig.download("w1")
        key = (directory_name("w1"), 2, "out")
        assert len(rig.archive.index.times(key)) == 2 and len(rig.archive.index.times(key, 10**9)) == 1
        (tmp_path / "another").mkdir()
        os.rename(tmp_path / "logs", tmp_path / "another" / "logs")
        rig.open()  # the next leader, on another machine
        assert {one: rig.download(one) for one in rig.workers} == downloads
        rig.store.retire("w1")
        rig.archive_all()
        assert rig.archive.index.totals()[0] == 2
        of_term = ArchiveIndex(PostgresTables(place, store.term))
        assert of_term.begin(new_name(store.term, 1.0), 1.0)
        PostgresqlStore(place).load()  # another manager leads
        with pytest.raises(Fenced):
            of_term.begin(new_name(store.term, 2.0), 2.0)
        store.close()


def test_a_takeover_in_mid_upload_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Two managers, one PostgreSQL, one shared folder. The host sends the next leader what is not archived yet; the one
    before is frozen at some step of its upload, and wakes when the next has archived the same bytes."""
    with postgres_server.cluster() as server:
        place = DatabasePlace(server.url(server.database()), str(server.password))
        whole, objects_before = b"", 0
        for number, step in enumerate(("begun", "stored")):
            folder, other = tmp_path / f"a{number}", tmp_path / f"b{number}"
            for one in (folder, other):
                one.mkdir()
            (tmp_path / "shared").mkdir(exist_ok=True)
            before = PostgresqlStore(place)
            before.load()
            old = ArchiveRig(folder, Frozen(tmp_path / "shared"), place, term=before.term)
            assert isinstance(old.place, Frozen)
            more = numbered(1_000 * number, 1_000 * number + 1_000)
            kept = old.store.length("w1", 1, "out")
            assert kept == len(whole)
            old.store.append("w1", 1, "out", kept, more, 1_000.0)
            old.place.freezes = step
            with pytest.raises(Thawed):
                old.archive.step()
            after = PostgresqlStore(place)
            after.load()
            new = ArchiveRig(other, FolderStore(str(tmp_path / "shared"), FLEET, here), place, term=after.term)
            stored = new.store.length("w1", 1, "out")
            new.store.append("w1", 1, "out", stored, (whole + more)[stored:] + b"later\n", 1_001.0)
            whole += more + b"later\n"
            new.archive_all()
            old.place.freezes = ""
            with pytest.raises(Fenced):  # awake again, it may store its object, and name it nowhere
                for _ in range(3):
                    old.archive.step()
            assert new.download("w1") == whole, step
            new.again(lost_disk=True)
            assert new.download("w1") == whole, step
            assert len(new.objects_in(tmp_path / "shared")) > objects_before
            objects_before = len(new.objects_in(tmp_path / "shared"))
            for one in (before, after):
                one.close()


class Thawed(Exception):
    pass


class Frozen(FolderStore):
    """`freezes`: at which step of an upload its manager stops: "begun" before the object is there; "stored" behind it,
    when nothing knows it but the entry that was made before."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), FLEET, here)
        self.freezes = ""

    def put(self, name: str, data: bytes) -> None:
        if self.freezes != "begun":
            super().put(name, data)
        if self.freezes:
            raise Thawed


def test_what_a_bucket_deletes_by_itself_is_a_marked_gap(client: Any, tmp_path: Path) -> None:
    """The bucket's lifecycle rules delete objects: no request fails, and the rest is shown."""
    rig = ArchiveRig(tmp_path, BucketStore("pg-archive", "p", FLEET, REGION, KEYS))
    rig.write("w1", 1, numbered(0, 1_000))
    rig.archive_all()
    rig.write("w1", 1, numbered(1_000, 2_000))
    rig.archive_all()
    first = min(one["Key"] for one in client.list_objects_v2(Bucket="pg-archive")["Contents"])
    client.delete_object(Bucket="pg-archive", Key=first)
    rig.again(lost_disk=True)
    lines = rig.tail("w1", 10_000)
    assert lines[0].startswith("[procguard: 61,000 bytes of this log") and lines[1:] == rig.tail("w1", 1_000)
    assert lines[1].startswith("line 00001000") and lines[-1].startswith("line 00001999")
    assert rig.download("w1").endswith(numbered(1_000, 2_000)) and b"61,000 bytes" in rig.download("w1")
    assert rig.archive.status.unreadable_pieces > 0


def test_what_a_manager_wrote_after_its_term_does_no_harm(tmp_path: Path) -> None:
    """The next leader does not know the pieces, and archives the same bytes and more."""
    rig = ArchiveRig(tmp_path)
    rig.write("w1", 1, b"a" * 1_000)
    rig.archive_all()
    [key] = rig.archive._written_at
    rig.archive._covered.clear()
    rig.write("w1", 1, b"b" * 1_000)
    rig.archive.note("w1", 1, "out", 1_000)
    rig.archive_all()
    rig.again(lost_disk=True)
    assert rig.download("w1") == b"a" * 1_000 + b"b" * 1_000 and rig.archive.covered(*key) == [(0, 2_000)]


def test_a_damaged_index_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "index.db").write_bytes(b"no database" * 1_000)
    with pytest.raises(ProcGuardError, match="index of the log archive is damaged"):
        ArchiveRig(tmp_path, FolderStore(str(tmp_path), FLEET, here))
