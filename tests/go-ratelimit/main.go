// The rate limit service that Envoy's project has (github.com/envoyproxy/ratelimit), whole, with a store in this process in place of a
// Redis. Listens on the socket that it is given, with the configuration of the folder that it is given; see run.sh.
package main

import (
	"os"

	"github.com/alicebob/miniredis/v2"
	"github.com/envoyproxy/ratelimit/src/service_cmd/runner"
	"github.com/envoyproxy/ratelimit/src/settings"
)

func main() {
	store, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer store.Close()
	for key, value := range map[string]string{
		"GRPC_UDS":                       os.Args[1],
		"RUNTIME_ROOT":                   os.Args[2],
		"RUNTIME_SUBDIRECTORY":           "limits",
		"RUNTIME_WATCH_ROOT":             "false",
		"HOST":                           "127.0.0.1",
		"PORT":                           "0",
		"DEBUG_HOST":                     "127.0.0.1",
		"DEBUG_PORT":                     "0",
		"REDIS_SOCKET_TYPE":              "tcp",
		"REDIS_URL":                      store.Addr(),
		"USE_STATSD":                     "false",
		"DISABLE_STATS":                  "true",
		"LIMIT_RESPONSE_HEADERS_ENABLED": "true",
	} {
		if err := os.Setenv(key, value); err != nil {
			panic(err)
		}
	}
	server := runner.NewRunner(settings.NewSettings())
	server.Run()
}
