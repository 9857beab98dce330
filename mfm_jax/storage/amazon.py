"""Objects of Amazon S3, and of other servers with its interface."""

import secrets
from typing import Any

from mfm_jax.storage.objects import Objects
from mfm_jax.storage.retries import AddressError, status_of


class AmazonObjects(Objects):
    """Objects by s3fs, and what S3 does otherwise than other stores."""

    def __init__(self, library: Any) -> None:
        super().__init__(library)
        self._exclusive: set[str] = set()
        """Buckets that are known to refuse a second object of one name."""

    def tells_md5(self, key: str) -> bool:
        """Return whether the ETag is the MD5.

        That of an object which is encrypted with a key of KMS or of its owner is another number.
        """
        bucket, _, name = key.partition("/")
        told = self.library.call_s3("head_object", Bucket=bucket, Key=name)
        kind = told.get("ServerSideEncryption", "")
        return not kind.startswith("aws:kms") and "SSECustomerAlgorithm" not in told

    def create(self, key: str, data: bytes) -> None:
        """Write an object; raise FileExistsError if there is one with its name.

        Raises:
            AddressError: the server would let two processes do so.
        """
        self._check_exclusive(key)
        self._create(key, data)

    def _create(self, key: str, data: bytes) -> None:
        try:
            super().create(key, data)
        except OSError as error:
            if status_of(error) == 412:  # which not every server tells as s3fs expects it
                raise FileExistsError(key) from None
            raise

    def _check_exclusive(self, key: str) -> None:
        """Check once that a bucket refuses a second object of one name where this is asked for.

        Amazon's do. Other servers may not know the header for it (If-None-Match), and then let each
        of two workers believe that it is alone.
        """
        bucket = key.partition("/")[0]
        if bucket in self._exclusive:
            return
        probe = f"{key.rpartition('/')[0]}/.probe-{secrets.token_hex(8)}"
        try:
            self._create(probe, b"1")
            try:
                self._create(probe, b"2")
            except FileExistsError:
                self._exclusive.add(bucket)
                return
        finally:
            self.library.rm_file(probe)
        raise AddressError(
            f"the store of s3://{bucket} lets two workers write one object (it does not know "
            "If-None-Match), so that nothing can be divided there: use another store, or one "
            "worker and a folder of this machine"
        )

    def remove(self, key: str, *, missing_ok: bool = False) -> None:
        """Remove an object; raise FileNotFoundError if there is none and there has to be one."""
        if not missing_ok:
            self.library.info(key)  # S3 is content to remove what is not there
        super().remove(key, missing_ok=missing_ok)
