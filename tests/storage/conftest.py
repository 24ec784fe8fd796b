"""The same repository, S3 server and DVC process as the tests of states."""

from tests.record.conftest import dvc, project, s3, shared

__all__ = ["dvc", "project", "s3", "shared"]
