"""What several claims train on."""
