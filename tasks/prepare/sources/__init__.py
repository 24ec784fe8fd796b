"""One module per kind of data source; see `tasks.prepare.source.Source`. Each is light to import."""
