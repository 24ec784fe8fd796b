"""Crash tests of the real program: boundaries where a fault happens, the fault, and what must hold afterwards."""
