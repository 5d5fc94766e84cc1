"""Many runs: protocols, grids, studies that can be stopped and resumed, their statistics and tables."""
