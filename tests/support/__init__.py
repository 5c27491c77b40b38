"""What tests share: data and configs on disk, the command line in and out of process, servers on the loopback."""
