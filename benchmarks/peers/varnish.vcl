# The peer "varnish": POST cached by path, the JSON part's length, and the whole body (vmod bodyaccess, of Debian's
# varnish-modules).
vcl 4.1;

import std;
import bodyaccess;

backend triton {
    .host = "127.0.0.1";
    .port = "@UPSTREAM_PORT@";
}

sub vcl_recv {
    if (req.method == "POST" && std.cache_req_body(@BODY_BYTES@B)) {
        return (hash);
    }
    return (pass);
}

sub vcl_hash {
    hash_data(req.http.Inference-Header-Content-Length);
    bodyaccess.hash_req_body();
}

sub vcl_backend_fetch {
    set bereq.method = "POST";  # what is looked up is fetched with GET otherwise
}

sub vcl_backend_response {
    set beresp.ttl = 1h;
}

sub vcl_deliver {
    if (obj.hits > 0) {
        set resp.http.X-Cache = "HIT";
    } else {
        set resp.http.X-Cache = "MISS";
    }
}
