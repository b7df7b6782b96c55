"""SGLang's application with `/jenga` on it, for the processes of ``--tokenizer-worker-num``: each
imports the application anew, by the path in SGLANG_HTTP_SERVER_APP_PATH."""

from sglang.srt.entrypoints import http_server

from jenga_sglang.web.routes import add_routes

app = http_server.app
add_routes(app, http_server.get_global_state)
