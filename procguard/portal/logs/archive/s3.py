"""A bucket of S3 or a compatible server, through boto3 (extra `s3`), which is cooperative in greenlets.

Credentials come from the environment, a file or a profile, as boto3 finds them. Messages contain neither credentials
nor the server's own text: an error is reported by code and status.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import gevent

from procguard.errors import ConfigError
from procguard.portal.logs.archive.object_store import NAME, ArchiveFailed, ObjectMissing

CONNECT_TIMEOUT_S, READ_TIMEOUT_S, WHOLE_S = 5, 20, 60.0
CONNECTIONS = 16
# Removed from the environment, so that neither programs started by the manager nor jobs on its machine inherit them.
SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
# codes of servers without support for If-None-Match
_WITHOUT_CONDITIONS = ("NotImplemented", "InvalidArgument", "InvalidRequest")
T = TypeVar("T")


@dataclass(frozen=True)
class BucketOptions:
    """The values of `logs.archive_…`; "": as boto3 finds it."""

    endpoint: str = ""
    region: str = ""
    profile: str = ""
    credentials_file: str = ""


def taken_secrets() -> dict[str, str]:
    """Remove the secrets from this process's environment and return them."""
    return {name: value for name in SECRET_VARIABLES if (value := os.environ.pop(name, ""))}


class BucketStore:
    """The store `s3://bucket/prefix`. Raises ConfigError if boto3 or the credentials are missing."""

    def __init__(
        self, bucket: str, prefix: str, fleet_id: str, options: BucketOptions, given: dict[str, str] | None = None
    ) -> None:
        """`given`: the SECRET_VARIABLES that the environment had."""
        self._bucket = bucket
        self._prefix = "/".join(part for part in (prefix.strip("/"), fleet_id) if part) + "/"
        self.shown = f"s3://{bucket}/{prefix}".rstrip("/")
        self._conditional = True
        self.conditional: bool | None = None
        self._client = _client(options, given or {})

    def expect_objects(self) -> None:
        pass  # reports a missing bucket

    def put(self, name: str, data: bytes) -> None:
        more = {"IfNoneMatch": "*"} if self._conditional else {}
        # A server may ignore the header in silence: only a refusal proves that it knows it.
        try:
            self._do(lambda: self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=data, **more))
        except _Refused as exc:
            if exc.status == 412:
                self.conditional = True
                return  # an earlier attempt has succeeded: names are unique
            if more and (exc.status == 501 or exc.error_code in _WITHOUT_CONDITIONS):
                self._conditional = self.conditional = False
                self.put(name, data)
                return
            raise

    def get(self, name: str, start: int, length: int) -> bytes:
        def fetch() -> bytes:
            asked = f"bytes={start}-{start + length - 1}"
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name), Range=asked)
            with answer["Body"] as body:
                # Checked by header, not by status 206: rclone answers 200 with the requested range.
                if not str(answer.get("ContentRange", "")).startswith(f"bytes {start}-"):
                    raise _Refused(f"{self.shown}: the server ignores the Range of a request", status=200)
                found: bytes = body.read(length)
            return found

        try:
            return self._do(fetch)
        except _Refused as exc:
            if exc.status == 404:
                raise ObjectMissing(
                    f"{self.shown}: an archived object is missing", "restore it from a version or a backup"
                ) from exc
            if exc.status == 416:
                return b""
            raise

    def delete(self, name: str) -> None:
        try:
            self._do(lambda: self._client.delete_object(Bucket=self._bucket, Key=self._key(name)))
        except _Refused as exc:
            if exc.status != 404:
                raise

    def names(self) -> Iterator[str]:
        pages = iter(self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix))
        while (page := self._do(lambda: next(pages, None))) is not None:
            keys = [str(one["Key"]).removeprefix(self._prefix) for one in page.get("Contents", ())]
            yield from (key for key in keys if NAME.fullmatch(key))

    def _key(self, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ArchiveFailed("logs.archive: not the name of an archived object")
        return self._prefix + name

    def _do(self, call: Callable[[], T]) -> T:
        from botocore import exceptions  # noqa: PLC0415 - only for an archive in a bucket

        try:
            with gevent.Timeout(WHOLE_S, _TooLate()):
                return call()
        except exceptions.ClientError as exc:
            error, answer = exc.response.get("Error", {}), exc.response.get("ResponseMetadata", {})
            code = "".join(letter for letter in str(error.get("Code", "")) if letter.isalnum())[:60]
            status = int(answer.get("HTTPStatusCode", 0))
            raise _Refused(f"logs.archive: {self.shown}: refused ({code}, HTTP {status})", _next_step(code),
                           status=status, error_code=code) from None  # fmt: skip
        except _TooLate:
            raise ArchiveFailed(f"logs.archive: {self.shown}: no answer within {WHOLE_S:g} s", _REACH) from None
        except (exceptions.BotoCoreError, exceptions.HTTPClientError, OSError) as exc:
            what = type(exc).__name__  # the text may contain the credentials
            raise ArchiveFailed(f"logs.archive: {self.shown}: {_WORDS.get(what, what)}", _REACH) from None


class _TooLate(Exception):
    pass


class _Refused(ArchiveFailed):
    def __init__(self, message: str, next_step: str = "", *, status: int, error_code: str = "") -> None:
        super().__init__(message, next_step)
        self.status, self.error_code = status, error_code


_REACH = "check the endpoint and that the manager's machine can reach it"
_WORDS = {
    "EndpointConnectionError": "cannot connect",
    "ConnectTimeoutError": "cannot connect in time",
    "ReadTimeoutError": "no answer in time",
    "ConnectionClosedError": "the connection was closed",
    "NoCredentialsError": "no credentials were found",
    "PartialCredentialsError": "the credentials are incomplete",
    "ProfileNotFound": "the profile does not exist",
    "SSLError": "the certificate is not trusted",
    "ResponseStreamingError": "the connection was interrupted",
    "IncompleteReadError": "the connection was interrupted",
}


def _next_step(code: str) -> str:
    return {
        "NoSuchBucket": "create the bucket",
        "AccessDenied": "the credentials need s3:PutObject, s3:GetObject, s3:DeleteObject and s3:ListBucket there",
        "InvalidAccessKeyId": "check the credentials",
        "SignatureDoesNotMatch": "check the credentials",
        "ExpiredToken": "renew the credentials",
    }.get(code, _REACH)


def _client(options: BucketOptions, given: dict[str, str]) -> Any:
    try:
        import boto3  # noqa: PLC0415 - a second and 30 MB that only an archive in a bucket needs
        from botocore import exceptions  # noqa: PLC0415
        from botocore.config import Config as BotoConfig  # noqa: PLC0415
        from botocore.session import Session as BotoSession  # noqa: PLC0415
    except ImportError as exc:
        raise ConfigError(
            "logs.archive: s3:// needs boto3, which is not installed", "pip install 'procguard[s3]'"
        ) from exc
    for name in ("boto3", "botocore", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)  # at DEBUG they log signatures and headers
    try:
        core = BotoSession(profile=options.profile or None)
        if options.credentials_file:
            core.set_config_variable("credentials_file", os.path.expanduser(options.credentials_file))
        used = {} if options.profile or options.credentials_file else given
        session = boto3.Session(
            *(used.get(name) for name in SECRET_VARIABLES),
            region_name=options.region or None,
            botocore_session=core,
        )
        client = session.client(
            "s3",
            endpoint_url=options.endpoint or None,
            region_name=options.region or session.region_name or "us-east-1",
            config=BotoConfig(
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                max_pool_connections=CONNECTIONS,
                retries={"mode": "standard", "total_max_attempts": 2},
                s3={"addressing_style": "path"} if options.endpoint else {},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
    except (exceptions.BotoCoreError, ValueError) as exc:
        name = type(exc).__name__
        raise ConfigError(
            f"logs.archive: s3: {_WORDS.get(name, 'its settings cannot be used')}", "check logs.archive_… and ~/.aws"
        ) from None
    if session.get_credentials() is None:
        raise ConfigError(
            "logs.archive: s3: no credentials were found",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, logs.archive_profile or logs.archive_credentials_file",
        )
    return client


def split_url(text: str) -> tuple[str, str]:
    """`s3://bucket/prefix` -> (bucket, prefix)."""
    bucket, _, prefix = text.removeprefix("s3://").partition("/")
    return bucket, prefix.strip("/")
