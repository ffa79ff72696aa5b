"""Checks of the settings that a YAML gives to an object."""

from speechbrain_peer.utils.files import DataError


class Settings:
    """Checks settings, and names the object in its errors.

    Arguments
    ---------
    owner : str
        What the YAML calls the object.

    Example
    -------
    >>> Settings("mixing").spread("snr", [0, 20], least=-40, most=80)
    (0, 20)
    >>> Settings("mixing").number("absent", 2, least=0, most=1)
    Traceback (most recent call last):
    speechbrain_peer.utils.files.DataError: mixing: absent is 2, not from 0 to 1
    """

    def __init__(self, owner):
        self.owner = owner

    def number(self, name, value, least, most):
        """A number in a range."""
        # A bool is an int, too.
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(f"{self.owner}: {name} is {value!r}, not a number")
        if not least <= value <= most:
            raise DataError(
                f"{self.owner}: {name} is {value}, not from {least} to {most}"
            )
        return value

    def whole_numbers(self, name, values, least, most):
        """A list of whole numbers, each in a range."""
        values = list(values) if isinstance(values, list | tuple) else []
        if not values or not all(type(value) is int for value in values):
            raise DataError(
                f"{self.owner}: {name} is not a list of whole numbers, such as [1]"
            )
        return [self.number(name, value, least, most) for value in values]

    def spread(self, name, values, least, most):
        """The range that something is drawn from, which is within another."""
        if not isinstance(values, list | tuple) or len(values) != 2:
            raise DataError(
                f"{self.owner}: {name} is {values!r}, not a range, such as "
                f"[{least}, {most}]"
            )
        low, high = (self.number(name, value, least, most) for value in values)
        if low > high:
            raise DataError(
                f"{self.owner}: {name} is a range whose end {high} is before {low}"
            )
        return low, high

    def one_of(self, name, value, choices):
        """One of several words."""
        if value not in choices:
            raise DataError(
                f"{self.owner}: {name} is {value!r}, not {' or '.join(choices)}"
            )
        return value
