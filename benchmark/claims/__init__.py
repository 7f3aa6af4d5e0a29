"""Published numbers, and whether they agree with themselves and with each other. No torch."""
