"""Where a network runs and how long it takes there: devices, sessions, measurements, profiles and predictors."""
