"""What single notebooks draw and tabulate with: one file for each that needs one."""
