"""One process at a time in a folder, however the process before it ended."""

from __future__ import annotations

import os

import pytest

from monoloss.errors import InputError
from monoloss.files.lock import only_one


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings(r"ignore:.*multi-threaded, use of fork\(\):DeprecationWarning")  # of Python 3.12 and later
def test_a_lock_ends_with_its_holder_though_a_process_it_forked_lives_on(tmp_path):
    """Worker processes of a killed run take a moment to end; the same command must resume at once."""
    reading, writing = os.pipe()
    holder = os.fork()
    if holder == 0:
        lock = only_one(tmp_path, "writing")
        lock.__enter__()
        if os.fork() == 0:  # a worker, which ends when the test closes its end of the pipe
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        os._exit(0)  # killed: nothing is let go by hand
    os.waitpid(holder, 0)
    with only_one(tmp_path, "writing"):
        pass
    os.close(writing)
    os.close(reading)


@pytest.mark.door
def test_a_lock_is_one_processs_alone(tmp_path):
    with only_one(tmp_path, "writing"):
        refusal = pytest.raises(InputError, match="a folder in which another process is writing")
        with refusal, only_one(tmp_path, "writing"):
            pass
    with only_one(tmp_path, "writing"):
        pass
