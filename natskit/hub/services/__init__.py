"""Accounts, projects and runners: the services that the methods of the API call."""
