"""Prints as many free ports on loopback as its argument says."""

import socket
import sys

sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(opened.getsockname()[1] for opened in sockets))
