"""What a person types and sees. Only this room and the programs print, exit or catch signals."""
