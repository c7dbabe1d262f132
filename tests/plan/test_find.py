"""Bisection against a search that tries everything."""

import pytest

from effarch.plan.find import largest


@pytest.mark.parametrize("unit", [1, 3, 8])
@pytest.mark.parametrize("start", [1, 8, 40, 1000])
@pytest.mark.parametrize("limit", [0, 1, 7, 8, 63, 64, 65, 500])
def test_the_largest_multiple_that_fits(limit, start, unit):
    asked = []

    def fits(value: int) -> bool:
        asked.append(value)
        return value <= limit

    found = largest(fits, start=start, unit=unit)
    assert found.largest == (max((n for n in range(unit, limit + 1, unit)), default=None))
    assert len(asked) == len(set(asked)) and not any(value % unit for value in asked)
    assert dict(found.tried) == {value: value <= limit for value in asked}
    assert len(asked) <= 2 * max(start, limit + unit).bit_length() + 2


def test_where_everything_fits_the_limit_is_the_answer():
    assert largest(lambda value: True, start=8, unit=8, limit=100).largest == 96
    assert largest(lambda value: True, start=500, unit=8, limit=100).largest == 96
