"""What every part uses: errors for the user, atomic files, background work."""
