"""What people type: e-mail addresses, titles, passwords, host names and origins."""
