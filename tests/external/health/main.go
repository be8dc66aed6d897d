// What grpc-go sees of Keyward's health. See ../README.md.
//
//	list TARGET           prints what List says
//	balance SERVICE TARGET...
//
// `balance` calls through grpc-go's own health checking: it prints the state of the channel whenever that changes, and
// ends when its standard input does.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

const timeout = 20 * time.Second

func main() {
	log.SetFlags(0)
	switch what, rest := os.Args[1], os.Args[2:]; what {
	case "list":
		list(rest[0])
	case "balance":
		balance(rest[0], rest[1:])
	default:
		log.Fatalf("there is no %q", what)
	}
}

func list(target string) {
	conn, err := grpc.NewClient("passthrough:///"+target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	reply, err := healthpb.NewHealthClient(conn).List(ctx, &healthpb.HealthListRequest{})
	must(err)
	statuses := map[string]string{}
	for name, told := range reply.Statuses {
		statuses[name] = told.Status.String()
	}
	must(json.NewEncoder(os.Stdout).Encode(statuses))
}

func balance(service string, targets []string) {
	servers := manual.NewBuilderWithScheme("servers")
	state := resolver.State{}
	for _, target := range targets {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: target})
	}
	servers.InitialState(state)
	config := fmt.Sprintf(`{"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": %q}}`, service)
	conn, err := grpc.NewClient("servers:///", grpc.WithResolvers(servers), grpc.WithDefaultServiceConfig(config),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(err)
	defer conn.Close()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	conn.Connect()
	for state := connectivity.Idle; conn.WaitForStateChange(ctx, state); {
		state = conn.GetState()
		fmt.Println(state)
	}
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
