// The router of an InferenceGraph, after the documentation and the API comments of KServe (v1alpha1).
//
// A sequence hands its input to each step, or with data "$response" what the step before returned; a condition is a path
// of GJSON on that response, and the sequence ends with it where the path does not exist. An ensemble calls its steps at
// once and merges the responses by step name. A switch calls the first step with a condition that its input meets. A
// splitter calls one step by its weight.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/tidwall/gjson"
)

type step struct {
	Name        string `json:"name"`
	NodeName    string `json:"nodeName"`
	ServiceName string `json:"serviceName"`
	Data        string `json:"data"`
	Condition   string `json:"condition"`
	Weight      int    `json:"weight"`
}

type node struct {
	RouterType string `json:"routerType"`
	Steps      []step `json:"steps"`
}

type graph struct {
	Nodes    map[string]node   `json:"nodes"`
	Services map[string]string `json:"services"`
}

const maxBody = 1 << 24

var client = &http.Client{Timeout: 30 * time.Second}

func main() {
	var routes graph
	if err := json.NewDecoder(os.Stdin).Decode(&routes); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	fmt.Println(listener.Addr().String())
	handler := func(writer http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(writer, request.Body, maxBody))
		if err == nil {
			body, err = routes.callNode("root", body)
		}
		if err != nil {
			http.Error(writer, err.Error(), http.StatusInternalServerError)
			return
		}
		writer.Header().Set("Content-Type", "application/json")
		_, _ = writer.Write(body)
	}
	_ = http.Serve(listener, http.HandlerFunc(handler))
}

func (routes *graph) callNode(name string, input []byte) ([]byte, error) {
	current, exists := routes.Nodes[name]
	if !exists || len(current.Steps) == 0 {
		return nil, fmt.Errorf("no node %s with steps", name)
	}
	switch current.RouterType {
	case "Sequence":
		return routes.callSequence(current.Steps, input)
	case "Ensemble":
		return routes.callEnsemble(current.Steps, input)
	case "Switch":
		for _, branch := range current.Steps {
			if gjson.GetBytes(input, branch.Condition).Exists() {
				return routes.callStep(branch, input)
			}
		}
		return nil, errors.New("no condition of a switch is met")
	case "Splitter":
		point := rand.Intn(100)
		for _, branch := range current.Steps {
			if point -= branch.Weight; point < 0 {
				return routes.callStep(branch, input)
			}
		}
		return nil, errors.New("the weights of a splitter are below 100")
	}
	return nil, fmt.Errorf("no router type %s", current.RouterType)
}

func (routes *graph) callSequence(steps []step, input []byte) ([]byte, error) {
	var response []byte
	for index, next := range steps {
		if next.Condition != "" {
			if !gjson.ValidBytes(response) {
				return nil, errors.New("a condition before the first response")
			}
			if !gjson.GetBytes(response, next.Condition).Exists() {
				return response, nil
			}
		}
		request := input
		if next.Data == "$response" && index > 0 {
			request = response
		}
		var err error
		if response, err = routes.callStep(next, request); err != nil {
			return nil, err
		}
	}
	return response, nil
}

func (routes *graph) callEnsemble(steps []step, input []byte) ([]byte, error) {
	type result struct {
		response []byte
		err      error
	}
	results := make([]chan result, len(steps))
	for index := range steps {
		results[index] = make(chan result, 1)
		go func() {
			response, err := routes.callStep(steps[index], input)
			results[index] <- result{response, err}
		}()
	}
	merged := map[string]json.RawMessage{}
	for index, next := range steps {
		answer := <-results[index]
		if answer.err != nil {
			return nil, answer.err
		}
		name := next.Name
		if name == "" {
			name = strconv.Itoa(index)
		}
		merged[name] = answer.response
	}
	return json.Marshal(merged)
}

func (routes *graph) callStep(next step, input []byte) ([]byte, error) {
	if next.NodeName != "" {
		return routes.callNode(next.NodeName, input)
	}
	url, exists := routes.Services[next.ServiceName]
	if !exists {
		return nil, fmt.Errorf("no service %s", next.ServiceName)
	}
	response, err := client.Post(url, "application/json", bytes.NewReader(input))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxBody))
	if err == nil && response.StatusCode >= 300 {
		err = fmt.Errorf("%s answers %d: %s", next.ServiceName, response.StatusCode, body)
	}
	return body, err
}
