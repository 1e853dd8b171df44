"""Runs backends in processes of their own and hands their traces to the judge."""
