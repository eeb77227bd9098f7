"""The demonstration behind ``make demo``: three controllers, real data, a disaster, and what the copy is worth."""
