"""What every part of parity shares: traces, jobs, the unit table, profiles, results. Needs numpy and h5py."""
