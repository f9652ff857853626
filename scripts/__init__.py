"""Programs beside the package: figures, launchers, data preparation."""
