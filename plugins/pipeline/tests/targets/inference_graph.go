// The router of an InferenceGraph (v1alpha1) as KServe's behaves, for the router types that an export uses.
//
// A sequence hands its input to each step, or with data "$response" what the step before returned. A condition is a path
// of GJSON on that response; where the path does not exist, the sequence ends with the response and status 200 (KServe's
// router before pull request 4429 of 2025 had status 500). The status of a step counts only if it is a hard dependency:
// otherwise its answer, an error or not, goes on. An ensemble calls its steps at once and merges the objects that they
// return by step name.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	Dependency  string `json:"dependency"`
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
		status := http.StatusInternalServerError
		body, err := io.ReadAll(http.MaxBytesReader(writer, request.Body, maxBody))
		if err == nil {
			body, status, err = routes.callNode("root", body)
		}
		if err != nil {
			http.Error(writer, err.Error(), http.StatusInternalServerError)
			return
		}
		if json.Valid(body) {
			writer.Header().Set("Content-Type", "application/json")
		}
		writer.WriteHeader(status)
		_, _ = writer.Write(body)
	}
	_ = http.Serve(listener, http.HandlerFunc(handler))
}

func (routes *graph) callNode(name string, input []byte) ([]byte, int, error) {
	current, exists := routes.Nodes[name]
	if !exists || len(current.Steps) == 0 {
		return nil, 0, fmt.Errorf("no node %s with steps", name)
	}
	switch current.RouterType {
	case "Sequence":
		return routes.callSequence(current.Steps, input)
	case "Ensemble":
		return routes.callEnsemble(current.Steps, input)
	}
	return nil, 0, fmt.Errorf("no router type %s", current.RouterType)
}

func (routes *graph) callSequence(steps []step, input []byte) ([]byte, int, error) {
	var response []byte
	var status int
	for index, next := range steps {
		if next.Condition != "" {
			if !gjson.ValidBytes(response) {
				return nil, 0, errors.New("a condition on a response that is no JSON")
			}
			if !gjson.GetBytes(response, next.Condition).Exists() {
				return response, http.StatusOK, nil
			}
		}
		request := input
		if next.Data == "$response" && index > 0 {
			request = response
		}
		var err error
		if response, status, err = routes.callStep(next, request); err != nil {
			return nil, 0, err
		}
		if hasFailed(next, status) {
			return response, status, nil
		}
	}
	return response, status, nil
}

func (routes *graph) callEnsemble(steps []step, input []byte) ([]byte, int, error) {
	type result struct {
		response map[string]any
		status   int
		err      error
	}
	results := make([]chan result, len(steps))
	for index := range steps {
		results[index] = make(chan result, 1)
		go func() {
			var answer result
			var body []byte
			body, answer.status, answer.err = routes.callStep(steps[index], input)
			if answer.err == nil {
				answer.err = json.Unmarshal(body, &answer.response)
			}
			results[index] <- answer
		}()
	}
	merged := map[string]any{}
	for index, next := range steps {
		answer := <-results[index]
		if answer.err != nil {
			return nil, 0, answer.err
		}
		if hasFailed(next, answer.status) {
			body, err := json.Marshal(answer.response)
			return body, answer.status, err
		}
		name := next.Name
		if name == "" {
			name = strconv.Itoa(index)
		}
		merged[name] = answer.response
	}
	body, err := json.Marshal(merged)
	return body, http.StatusOK, err
}

func hasFailed(next step, status int) bool {
	return next.Dependency == "Hard" && (status < 200 || status > 299)
}

func (routes *graph) callStep(next step, input []byte) ([]byte, int, error) {
	if next.NodeName != "" {
		return routes.callNode(next.NodeName, input)
	}
	url, exists := routes.Services[next.ServiceName]
	if !exists {
		return nil, 0, fmt.Errorf("no service %s", next.ServiceName)
	}
	response, err := client.Post(url, "application/json", bytes.NewReader(input))
	if err != nil {
		return nil, 0, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxBody))
	return body, response.StatusCode, err
}
