"""Time of serving steps by roofline, what closed-loop users then see, and calibration from a few measured points."""
