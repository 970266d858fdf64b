"""As much of a W&B server as `wandb sync` and saving a view need: it keeps what it is sent."""

import gzip
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Received:
    """What has come: history rows and config by run, artifacts and who used them, alerts, files, views."""

    def __init__(self):
        self.history, self.runs, self.artifacts, self.used, self.alerts = {}, {}, {}, [], []
        self.files, self.views = [], []
        self.refuse = set()  # operations that are answered with an error

    def answer(self, operation, given, url):
        if operation in self.refuse:
            return {"errors": [{"message": f"{operation} is refused"}]}
        name = given.get("name")
        if operation == "UpsertBucket":
            self.runs.setdefault(name, {}).update({key: value for key, value in given.items() if value is not None})
            return {"upsertBucket": {"bucket": bucket(name), "inserted": True}}
        if operation == "RunResumeStatus":
            rows = self.history.get(name)
            last = {"_step": rows[-1]["_step"]} if rows else {}
            found = bucket(name) | {
                "summaryMetrics": json.dumps(last),
                "historyLineCount": len(rows or []),
                "eventsLineCount": 0,
                "logLineCount": 0,
                "historyTail": json.dumps([json.dumps(last)]),
                "eventsTail": "[]",
                "tags": [],
                "notes": None,
                "wandbConfig": '{"t": 1}',
            }
            return {"model": bucket(name)["project"] | {"bucket": found} if rows else None}
        if operation == "CreateArtifact":
            wanted = given["input"]
            made = {"run": wanted["runName"], "name": wanted["artifactCollectionName"], "digest": wanted["digest"]}
            self.artifacts[wanted["digest"]] = made
            latest = {"id": wanted["digest"], "versionIndex": 0}
            artifact = {"id": wanted["digest"], "state": "COMMITTED", "artifactSequence": {"id": "S"}}
            artifact["artifactSequence"]["latestArtifact"] = latest
            return {"createArtifact": {"artifact": artifact}}
        if operation == "CreateRunFiles":
            self.files += given["files"]
            files = [{"name": file, "uploadUrl": f"{url}/up/{file}"} for file in given["files"]]
            return {"createRunFiles": {"runID": "UnVu", "uploadHeaders": [], "files": files}}
        if operation == "NotifyScriptableRunAlert":
            self.alerts.append(given)
            return {"notifyScriptableRunAlert": {"success": True}}
        if operation == "UseArtifact":
            self.used.append(given["input"] if "input" in given else given)
            return {"useArtifact": {"artifact": {"id": "A"}}}
        if operation in ("Viewer", "GetViewer"):
            teams = {"edges": [{"node": {"name": "me"}}]}
            return {"viewer": {"id": "V", "entity": "me", "username": "me", "flags": "{}", "teams": teams}}
        if operation == "ProjectInternalId":
            return {"project": {"internalId": "UHJvamVjdDox"}}
        if operation in ("UpsertView2", "upsertView"):
            self.views.append(given)
            about = {name: given[name] for name in ("name", "displayName", "spec")}
            about |= {"id": "Vmlldzox", "type": "runs", "description": "", "project": bucket("")["project"]}
            about |= {"entityName": "me", "user": {"username": "me"}, "updatedAt": None, "createdAt": None}
            return {"upsertView": {"view": about, "inserted": True}}
        if operation == "GetProjects":
            page = {"hasNextPage": False, "endCursor": None}
            return {"models": {"edges": [{"node": bucket("")["project"], "cursor": "c"}], "pageInfo": page}}
        return {}

    def stream(self, run, files):
        rows = files.get("wandb-history.jsonl")
        if rows:
            kept = self.history.setdefault(run, [])
            kept[rows["offset"] :] = [json.loads(line) for line in rows["content"]]


def bucket(name):
    project = {"id": "P", "name": "vision-r1", "entityName": "me", "entity": {"id": "E", "name": "me"}}
    project |= {"createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": None}
    about = {"id": "UnVu", "name": name, "displayName": name, "description": None, "config": "{}", "sweepName": None}
    return about | {"project": project, "historyLineCount": 0}


@contextmanager
def wandb_server():
    """A server on a free port: (its address, what it has received)."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def do_POST(self):
            body = self.body()
            if self.path.endswith("/graphql"):
                asked = json.loads(body)
                named = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
                reply = received.answer(named[1], asked.get("variables") or {}, address)
                self.reply(reply if "errors" in reply else {"data": reply})
                return
            if self.path.endswith("/file_stream"):
                received.stream(self.path.split("/")[4], json.loads(body).get("files", {}))
            self.reply({})

        def do_PUT(self):
            self.body()
            self.reply({})

        def do_GET(self):
            self.reply({})

        def body(self):
            if self.headers.get("Transfer-Encoding") == "chunked":
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

        def reply(self, content):
            text = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield address, received
    finally:
        server.shutdown()
