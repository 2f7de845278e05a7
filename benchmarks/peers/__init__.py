"""The same model behind other servers, each started in an environment of its own; none of them imports the project."""
