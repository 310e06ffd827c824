"""Landscapes of the essays: crossings of valleys, a well of pieces, toys of the edge of stability, a deep linear network."""
