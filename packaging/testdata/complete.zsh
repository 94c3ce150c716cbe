# Completes in an interactive zsh, as a person does: the folder with the
# completion, the keys, and what they must become.
zmodload zsh/zpty
zpty z "zsh -f -i"
zpty -w z "PS1='>'; fpath=($1 \$fpath); autoload -U compinit; compinit -D -u; echo rea''dy"
zpty -r -m z line '*ready*' || exit 1
zpty -w -n z "$2"
for n in {1..600}; do
	zpty -r -t z line && all+=$line
	if [[ $all == *$3* ]]; then
		print -r -- $3
		exit
	fi
	sleep 0.05
done
print -r -- $all
exit 1
