"""The tools with which all tests and measurements start servers."""
