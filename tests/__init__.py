"""Tests of jlora."""
