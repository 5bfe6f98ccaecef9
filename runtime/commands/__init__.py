"""The commands of the runtime: thin, each over the library it shows."""
