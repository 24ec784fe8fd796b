"""What every node shares about models: open_clip's configurations, checkpoint files and prepared data sets."""
