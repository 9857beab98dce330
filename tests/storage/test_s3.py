"""A store of S3 does what Google's does: the same tests, and what is of S3 alone."""

import secrets
import threading
from contextlib import nullcontext

import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from mfm_jax.inference.record import is_there
from mfm_jax.storage.copies import _check
from mfm_jax.storage.leases import Leases
from mfm_jax.storage.retries import AddressError, may_pass
from mfm_jax.storage.store import digest_file
from tests.s3_server import new_bucket, running_server, used
from tests.storage.test_addresses import (  # noqa: F401
    test_a_file_that_is_written_is_there_whole_or_not_at_all,
    test_a_folder_is_claimed_by_one,
    test_a_folder_takes_the_place_of_another,
    test_atomic_writes_go_through_this_machine,
    test_objects_are_files_and_their_names_make_folders,
    test_what_a_disk_says_a_store_says,
)
from tests.storage.test_copies import (  # noqa: F401
    test_a_copy_has_the_suffix_and_goes_after_its_use,
    test_a_folder_is_copied_once_for_each_version,
)
from tests.storage.test_leases import (  # noqa: F401
    clock,
    test_one_has_it_until_it_is_given_back,
    test_the_lease_of_a_dead_worker_goes_to_another,
    test_who_believes_that_there_was_none_does_not_get_what_another_has,
)
from tests.store_proxy import Proxy
from train import main as train


@pytest.fixture(scope="module")
def s3():
    """The address of a server."""
    with running_server() as url:
        yield url


@pytest.fixture
def bucket(s3, copies):
    """A new bucket."""
    with used(s3):
        yield new_bucket(s3, f"b-{secrets.token_hex(6)}")


@pytest.fixture
def folder(bucket):
    """A folder for leases."""
    return bucket / "leases"


@pytest.fixture
def proxy(s3, bucket):
    """A proxy through which this process reads and writes the store."""
    with Proxy(s3) as between, used(between.url):
        yield between


def test_of_many_that_make_one_object_one_succeeds(bucket):
    both, made = threading.Barrier(4), []

    def race(worker):
        for number in range(25):
            both.wait()
            try:
                (bucket / str(number)).create(worker)
                made.append((number, worker))
            except FileExistsError:
                pass

    threads = [threading.Thread(target=race, args=(bytes([65 + i]),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in made) == list(range(25))
    assert all((bucket / str(number)).read_bytes() == worker for number, worker in made)
    assert len([*bucket.iterdir()]) == 25


def test_a_server_that_lets_two_make_one_object_gets_no_leases(proxy, bucket):
    proxy.unknown = {"if-none-match"}
    with pytest.raises(AddressError, match=f"store of {bucket} lets two workers write one object"):
        Leases(bucket / "leases").take("0")
    assert [*bucket.files()] == []
    (bucket / "a").write_text("other writes go on")


def test_an_etag_of_an_encrypted_object_is_no_digest(bucket, tmp_path):
    (tmp_path / "copy").write_bytes(b"contents")
    for name, encrypted in (("plain", {}), ("kms", {"ServerSideEncryption": "aws:kms"})):
        file = bucket / name
        put = {"Bucket": bucket.key, "Key": name, "Body": b"contents", **encrypted}
        bucket.objects.library.call_s3("put_object", **put)
        _check(file, tmp_path / "copy", file.info())
        told = {**file.info(), "ETag": f'"{"0" * 32}"'}  # as Amazon's store tells of the second one
        damaged = nullcontext() if encrypted else pytest.raises(AddressError, match="damaged")
        with damaged:
            _check(file, tmp_path / "copy", told)
    entry = {"made_of": {}, "sha256": digest_file(file), "md5": {"output": "0" * 32}}
    assert is_there(entry, file, {})


@pytest.mark.parametrize(
    ("code", "status", "passes"),
    [("SlowDown", 503, True), ("ConditionalRequestConflict", 409, True), ("403", 403, False)],
)
def test_what_s3fs_makes_of_an_answer_is_known(code, status, passes):
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = translate_boto_error(ClientError(answer, "PutObject"))
    assert may_pass(error) == passes


def test_training_is_refused_before_it_begins(bucket, capsys):
    assert train(["--config", "tiny", "--workdir", f"{bucket}/run"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"python train.py: {bucket}/run cannot hold the checkpoints of a run")
    assert told.count("\n") == 1
    assert [*bucket.files()] == []
