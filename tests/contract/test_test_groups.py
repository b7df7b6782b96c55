"""pytest-xdist, which keeps the tests of one file, or around one server, on one worker."""

import pytest


def test_a_group_is_part_of_a_tests_id(request: pytest.FixtureRequest) -> None:
    """By its id alone does `--dist loadgroup` know a test's group."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("only with `pytest -n N --dist loadgroup`")
    assert request.node.nodeid.endswith(f"@{request.path}")
