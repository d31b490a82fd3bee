"""Published collections of tasks: how their files are read, scored and answered."""
