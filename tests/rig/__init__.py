"""What the tests stand on: the workload and its report, the launchers, the snapshot of this process's world."""
