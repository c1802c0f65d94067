"""Sockets: the HTTP/1.1 server and the pooled client that gateway, worker and live share."""
