"""What is put on disk to be deployed: a portable model or an artifact, a bundle, a wheel."""
