"""The object store on S3, through boto3. Works with AWS and with anything that speaks the protocol."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

from core.config import MIB, Settings
from core.errors import Conflict, NotFound, Unavailable
from core.storage.store import Facts, Page, Stored, Unfinished

_TRANSFER = TransferConfig(multipart_threshold=16 * MIB, multipart_chunksize=16 * MIB, max_concurrency=4)


class S3Store:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bucket = settings.s3_bucket
        self._client = _client(settings, settings.s3_endpoint_url)
        # Signing is arithmetic on the host's name: this client never connects to the public address.
        self._signer = _client(settings, settings.s3_public_url or settings.s3_endpoint_url)

    def put(self, key: str, data: bytes, *, only_new: bool = False) -> None:
        condition = {"IfNoneMatch": "*"} if only_new else {}
        try:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data, **condition)
        except ClientError as error:
            if _code(error) in ("PreconditionFailed", "412"):
                raise Conflict(f"{key} exists already") from error
            raise

    def put_file(self, key: str, path: Path, look: Callable[[], None] | None = None) -> None:
        told = None if look is None else lambda sent: look()
        try:
            self._client.upload_file(str(path), self._bucket, key, Config=_TRANSFER, Callback=told)
        except S3UploadFailedError as error:
            # What the store has answered, as from every other call.
            if isinstance(error.__context__, ClientError):
                raise error.__context__ from error
            raise EndpointConnectionError(endpoint_url=self._bucket) from error

    def multipart(self, key: str) -> "S3Multipart":
        return S3Multipart(self._client, self._bucket, key)

    def abort_multiparts(self, key: str) -> None:
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=key)
        for entry in (entry for page in pages for entry in page.get("Uploads", []) if entry["Key"] == key):
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=entry["UploadId"])

    def unfinished(self) -> Iterator[Unfinished]:
        for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket):
            for entry in page.get("Uploads", []):
                yield Unfinished(entry["Key"], entry["UploadId"], entry["Initiated"])

    def abort(self, upload: Unfinished) -> None:
        _abort(self._client, {"Bucket": self._bucket, "Key": upload.key, "UploadId": upload.id})

    def stream(self, key: str) -> Iterator[bytes]:
        try:
            body = self._client.get_object(Bucket=self._bucket, Key=key)["Body"]
        except ClientError as error:
            raise _missing(error, key) from error
        with closing(body):
            yield from body.iter_chunks(MIB)

    def get(self, key: str) -> bytes:
        try:
            body: bytes = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except ClientError as error:
            raise _missing(error, key) from error
        return body

    def download(self, key: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._client.download_file(self._bucket, key, str(path), Config=_TRANSFER)
        except ClientError as error:
            raise _missing(error, key) from error

    def size(self, key: str) -> int | None:
        try:
            length: int = self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"]
        except ClientError as error:
            if _code(error) in ("404", "NoSuchKey", "NotFound"):
                return None
            raise
        return length

    def facts(self, key: str) -> Facts:
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=key)
        except ClientError as error:
            raise _missing(error, key) from error
        return Facts(head["ContentLength"], head["ContentType"], head["ETag"])

    def delete(self, *keys: str) -> None:
        # One request each: bulk deletion needs Content-MD5 on some servers and saves little at our sizes.
        for key in keys:
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def list(self, prefix: str) -> Iterator[str]:
        for page in self.pages(prefix):
            for stored in page:
                yield stored.key

    def pages(self, prefix: str) -> Iterator[Page]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        for page in pages:
            yield [Stored(entry["Key"], entry["LastModified"]) for entry in page.get("Contents", [])]

    def presigned(self, key: str, *, filename: str, seconds: int) -> str:
        # The name goes out as RFC 6266 says, so that no character of it can end the header.
        disposition = f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
        url: str = self._signer.generate_presigned_url(
            "get_object",
            Params={"Bucket": self._bucket, "Key": key, "ResponseContentDisposition": disposition},
            ExpiresIn=seconds,
        )
        return url

    def ready(self) -> None:
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except (ClientError, BotoCoreError) as error:
            raise Unavailable(f"object store: {type(error).__name__}") from error

    def create_bucket(self) -> None:
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            if _code(error) not in ("404", "NoSuchBucket"):
                raise
            self._client.create_bucket(Bucket=self._bucket)


class S3Multipart:
    """Starts with the first part, so that an upload that never sends a byte leaves nothing behind."""

    def __init__(self, client: Any, bucket: str, key: str) -> None:  # Any: boto3 ships no types
        self._client = client
        self._where = {"Bucket": bucket, "Key": key}
        self._id: str | None = None
        self._parts: list[dict[str, Any]] = []  # Any: part numbers and tags, as boto3 wants them

    def part(self, data: bytes | bytearray) -> None:
        place = self._next()
        self._add(place, self._client.upload_part(**place, Body=data)["ETag"])

    def copy(self, key: str, start: int, size: int) -> None:
        place = self._next()
        source = {"Bucket": self._where["Bucket"], "Key": key}
        whole = f"bytes={start}-{start + size - 1}"
        answer = self._client.upload_part_copy(**place, CopySource=source, CopySourceRange=whole)
        self._add(place, answer["CopyPartResult"]["ETag"])

    def _next(self) -> dict[str, Any]:
        if self._id is None:
            self._id = self._client.create_multipart_upload(**self._where)["UploadId"]
        return {**self._where, "UploadId": self._id, "PartNumber": len(self._parts) + 1}

    def _add(self, place: dict[str, Any], tag: str) -> None:
        self._parts.append({"PartNumber": place["PartNumber"], "ETag": tag})

    def complete(self) -> None:
        self._client.complete_multipart_upload(**self._where, UploadId=self._id, MultipartUpload={"Parts": self._parts})
        self._id = None

    def abort(self) -> None:
        if self._id is None:
            return
        _abort(self._client, {**self._where, "UploadId": self._id})


def _client(settings: Settings, endpoint: str | None) -> Any:  # Any: boto3 ships no types
    # Path style: the bucket stays out of the host name, which self-hosted servers rarely have a wildcard for.
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=settings.s3_secret_key,
        region_name=settings.s3_region,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            connect_timeout=5,
            read_timeout=60,
            retries={"max_attempts": 4, "mode": "standard"},
            max_pool_connections=32,
        ),
    )


def _abort(client: Any, upload: dict[str, str]) -> None:  # Any: boto3 ships no types
    try:
        client.abort_multipart_upload(**upload)
    except ClientError as error:
        # Somebody else has ended it: what was asked for is so.
        if _code(error) != "NoSuchUpload":
            raise


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _missing(error: ClientError, key: str) -> Exception:
    return NotFound(f"no object {key}") if _code(error) in ("404", "NoSuchKey", "NotFound") else error
