"""The built kernels, or a skip with a message where they were not built."""

import pytest

from baseload.engine.native.library import Library, load


@pytest.fixture(scope="session")
def library() -> Library:
    found = load()
    if found is None:
        pytest.skip("the native kernels were not built: no compiler when the package was installed")
    return found
