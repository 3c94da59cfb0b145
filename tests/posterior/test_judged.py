"""Errors as they are shown."""

from pyro_bc.posterior.judged import figure, rise


def test_errors_are_shown_in_as_many_digits_as_they_need():
    assert (figure("error %", 3.0551), figure("RMSE", 0.0012345)) == ("3.06", "0.001234")
    assert (rise("error %", 0.25), rise("RMSE", -0.00012)) == ("+0.25", "-0.00012")
