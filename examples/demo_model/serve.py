"""Starts the real SGLang server on Jenga memory and says how to ask it something.

`python -m examples.demo_model.serve --model-path M --port P [any other launch_server argument]`
"""

import argparse
import http.client
import signal
import socket
import subprocess
import sys
import time

HOST = "127.0.0.1"
POLL_SECONDS = 0.5


def main() -> None:
    """Run the server until it ends or is interrupted; exit with its status."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--port", type=int, default=30000)
    args, server_args = parser.parse_known_args()
    refuse_taken_port(args.port)
    server = start_server(args.model_path, args.port, server_args)
    # SGLang's own handler drains the requests that are running; this process only waits for it.
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    signal.signal(signal.SIGINT, lambda *_: None)
    if wait_until_healthy(server, args.port):
        print(invitation(args.port), flush=True)
    sys.exit(server.wait())


def refuse_taken_port(port: int) -> None:
    """Exit with a clear line if something already listens on `port`."""
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise SystemExit(f"Port {port} is taken: choose another with PORT=…")


def start_server(model_path: str, port: int, server_args: list[str]) -> subprocess.Popen[bytes]:
    """Start `sglang.launch_server` with Jenga memory as a child process."""
    command = [sys.executable, "-m", "sglang.launch_server", "--memory-backend", "jenga"]
    command += ["--model-path", model_path, "--port", str(port), *server_args]
    print("$", " ".join(command), flush=True)
    return subprocess.Popen(command)


def wait_until_healthy(server: subprocess.Popen[bytes], port: int) -> bool:
    """Return True once the server answers a health check, False if it ends before."""
    while server.poll() is None:
        if health_status(port) == http.client.OK:
            return True
        time.sleep(POLL_SECONDS)
    return False


def health_status(port: int) -> int | None:
    """Return the HTTP status of the health check, or None if nothing answers."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def invitation(port: int) -> str:
    """Return the lines that say what to type next."""
    return (
        "\nThe server is ready. Try, from another terminal:\n\n"
        f"  curl http://{HOST}:{port}/v1/completions -H 'Content-Type: application/json' \\\n"
        '    -d \'{"model": "default", "prompt": "Once upon a time", "max_tokens": 32}\'\n\n'
        f"Its memory, live: http://{HOST}:{port}/jenga\n\n"
        "Ctrl-C stops it.\n"
    )


if __name__ == "__main__":
    main()
