# What `README.md`'s commands find: a server with a certificate of this host's own authority.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=turn.example.org \
    -addext subjectAltName=DNS:turn.example.org -addext basicConstraints=CA:FALSE -keyout key.pem -out roots.pem
export CURL_CA_BUNDLE=$PWD/roots.pem SSL_CERT_FILE=$PWD/roots.pem
cat >/etc/turnix/turnix.toml <<END
realm = "turn.example.org"
[[listen]]
address = "[::]:3478"
[[listen]]
address = "[::]:443"
[auth]
users = { alice = "secret" }
secrets = ["s3cret"]
[tls]
certificate = "$PWD/roots.pem"
key = "$PWD/key.pem"
[peers]
allow = ["loopback", "198.51.100.7"]
[limits]
unauthenticated_per_address = 0
END
sudo systemctl start turnix
