"""Calibration data: read from their source, cut into sequences, split into disjoint parts."""
